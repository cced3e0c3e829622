# SPDX-License-Identifier: Apache-2.0
"""From a trained model to translations and their scores: section 6."""
