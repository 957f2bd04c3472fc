"""The edge to Kubernetes: nothing else imports the package `kubernetes`.

`resources` says where things are, `client` asks and turns errors into ours (`problems`), `watch` keeps a `cache` of
what is there, `queue` hands out what is to be looked at, `lease` says who may write, `writes` and `notices` write,
`access` asks who somebody is and what they may do.
"""
