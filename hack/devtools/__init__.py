"""What the tests and the demo run on: a control plane in one process, kubectl, helm and Go."""
