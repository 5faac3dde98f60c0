"""GraphQL over WebSocket: queries, mutations and subscriptions by the subprotocol ``graphql-transport-ws``.

The package needs graphql-core: ``pip install wshub[graphql]``.
"""

from wshub.graphql.handler import GraphQLHandler
from wshub.graphql.messages import SUBPROTOCOL, GraphQLCloseCode

__all__ = ["SUBPROTOCOL", "GraphQLCloseCode", "GraphQLHandler"]
