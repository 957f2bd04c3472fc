"""What the Helm chart is given: its values, and the files of `helm/fathom` that are written from them."""
