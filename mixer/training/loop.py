def dry_run(c): print("dry")
