#!/bin/bash
# Train on several hosts of a SLURM cluster:   sbatch experiments/launch/slurm.sh
# Edit the lines that are marked <-. Preempted, at its time limit or after a lost host, the job goes back
# into the queue and goes on from its last checkpoint.

#SBATCH --job-name=transformer
#SBATCH --nodes=2                     # <- hosts
#SBATCH --ntasks-per-node=8           # <- one process for each GPU; jax.distributed gives it that GPU
#SBATCH --gpus-per-node=8             # <-
#SBATCH --cpus-per-task=8             # <-
#SBATCH --time=24:00:00               # <-
#SBATCH --requeue                     # after preemption or the failure of a host, SLURM does it itself
#SBATCH --signal=TERM@120             # two minutes before the time limit, to every process
#SBATCH --open-mode=append
#SBATCH --output=transformer-%j.log

source .venv/bin/activate             # <- an environment that all hosts see

# --kill-on-bad-exit: when one process has died, the others need not wait for the heartbeat.
srun --kill-on-bad-exit=1 --wait=120 \
  python -u -m transformer_jax.main --distributed \
    --config=configs/base.py \
    --workdir=/shared/runs/base       # <- a folder that all hosts see
code=$?

# 143: SIGTERM came, all steps are saved. 75, 134, 137: a process of the job was lost. 2: to be mended.
case $code in
  143 | 75 | 134 | 137)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit $code
