"""The studies: experiments, the data they train on, and everything between a config file and a report."""
