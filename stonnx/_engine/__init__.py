"""Token ids in; outputs of the graph out, from runs that are planned and scheduled here."""
