"""A server of search by image: a page, and JSON that is described in OpenAPI."""
