"""MLflow, and the pictures and tables logged there; the only room that imports mlflow."""
