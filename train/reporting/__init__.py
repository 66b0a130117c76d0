"""What a run tells while it goes on and when it ends: metrics, progress, throughput, pictures."""
