"""The questions over HTTP, and the page of an atlas. Imports queries, neighbours, minified and what these use."""
