"""The sender of messages to one room with history. stored_sender.pyx says how it is used."""


cdef class StoredSender:
    cdef object send_stored      # of a HistorySource; None in a subclass
    cdef str channel
    cdef object config           # HistoryConfig

    cdef bint send(self, bytes envelope) except -1
