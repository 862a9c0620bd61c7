"""Fine-tuning: the stage that SFT, rejection sampling, Ghost Attention and distillation share; DPO; text classifiers.

Another loss over conversations is a file here, with its recipe; the loop itself is `rlhf.training`.
"""
