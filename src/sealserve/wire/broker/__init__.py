"""The key broker's protocol (package ``sealserve.broker.v1``)."""
