"""The same client on Flower: ``apps`` are its two halves, ``fleet`` runs them on real processes.

The folder ``wardrobe`` is the Flower app that a fleet is sent. All of it needs the extra
``mlguide[flower]`` (Flower 1.41; its interface moves from month to month).
"""
