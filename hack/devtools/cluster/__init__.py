"""Clusters whose nodes run real kubelets, for end-to-end tests of what is installed by the chart."""
