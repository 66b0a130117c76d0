"""What can be trained, a package a task; tasks never import each other."""
