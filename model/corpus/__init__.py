"""From real corpora to a prepared dataset: `fathom data prepare`.

list files -> read them into runs sorted by hash -> drop duplicates -> learn a vocabulary -> encode -> assemble shards.
Each step is done in pieces by several processes, and each finished piece is kept until the whole is done, so that an
interrupted command goes on where it was. The result depends on documents and options only.
"""

from model.corpus.mixture import Mixture, Source, read_mixture
from model.corpus.prepare import Options, prepare

__all__ = ["Mixture", "Options", "Source", "prepare", "read_mixture"]
