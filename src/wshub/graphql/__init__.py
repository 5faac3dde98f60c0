"""GraphQL over WebSocket, subscriptions included: the subprotocol ``graphql-transport-ws`` over a hub's connections.

It needs graphql-core: ``pip install wshub[graphql]``.
"""

from wshub.graphql.handler import SUBPROTOCOL, GraphQLHandler
from wshub.graphql.messages import GraphQLCloseCode

__all__ = ["SUBPROTOCOL", "GraphQLCloseCode", "GraphQLHandler"]
