"""One run's configuration: options, flags, a YAML file, what must hold, and the schedules that follow."""
