"""Training: an engine that any task uses, and the tasks.

From the top down, each part importing only what is below it: `cli`, the commands; `tasks`, what
can be trained; `engine`, how any task is trained, and `data`, where examples come from;
`checkpoint` and `reporting`; `cluster`, the processes of a job; `config`, the settings.
"""
