"""Token ids in; outputs of the graph out. This room plans and schedules the runs."""
