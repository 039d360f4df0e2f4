"""A question about models in; a recommendation from the published guide out."""
