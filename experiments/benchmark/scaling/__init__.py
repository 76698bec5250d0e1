"""How the train step scales over devices, from its compiled program and a stated model."""
