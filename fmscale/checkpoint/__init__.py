"""State: snapshot, persist, commit, restore at any number of ranks, export."""
