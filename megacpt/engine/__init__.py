"""Where model, parallelism and DeepSpeed meet: the only place that imports deepspeed."""
