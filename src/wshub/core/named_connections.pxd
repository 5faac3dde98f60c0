from wshub.core.connection cimport Connection
from wshub.core.hub_state cimport HubBase


cdef object check_connection_id(str name, str what, object value)
cdef Connection connection_of(HubBase hub, object exclude)
cdef str publisher_name(object publisher)
