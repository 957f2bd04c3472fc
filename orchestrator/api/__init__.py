"""The REST API: FastAPI over a job store. Imports neither torch nor ray nor mlflow."""
