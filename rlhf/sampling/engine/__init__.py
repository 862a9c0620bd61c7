"""An inference engine that a stage starts on its policy, asks for token ids and stops: vllm."""
