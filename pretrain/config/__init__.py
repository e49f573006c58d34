"""One run's configuration: `options.Config` is what everyone takes, `read.parse_config` makes one of a command line.

options: every option, declared once; flags: Megatron's command line; read: YAML and flags to a Config; validate: what
must hold; schedules: batch sizes and learning rates that follow.
"""
