cdef object encode_json(object value, str caller)
cdef object decode_json(str text)
