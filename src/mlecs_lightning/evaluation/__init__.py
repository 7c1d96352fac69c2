"""How the models of the parties do on data that they have not seen."""
