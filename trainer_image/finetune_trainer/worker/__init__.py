"""A worker slot: what trains trials and the winner, in a process that stays warm from item to item."""
