"""The documentation: ``python -m docs`` writes its pages from the package and the Markdown files, and Sphinx makes HTML of them."""
