"""Bad input of every kind that data sets from the web come with, each beside good samples, and what has to become of it."""
