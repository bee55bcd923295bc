"""A study at run time, over Ray: the broker that hands out work, and the documents that tell how far it has got."""
