"""What several tests share: models, slow references, hostile inputs, a stand-in server."""
