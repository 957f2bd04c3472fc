"""In which arithmetic matrix products are taken: one object, `Products`, that modules hold and a policy chooses.

Layers multiply through `Linear` and `feed_forward`, which ask their `products`; embedding, output head, router, norms,
`eh_proj` and the core of attention never do: they stay in the precision of their tensors (arXiv 2412.19437,
section 3.3.1).
"""

from model.precision.products import HIGH, Linear, Products, use

__all__ = ["HIGH", "Linear", "Products", "use"]
