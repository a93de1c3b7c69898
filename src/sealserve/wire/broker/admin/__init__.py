"""The key broker's administration protocol (package ``sealserve.broker.admin.v1``)."""
