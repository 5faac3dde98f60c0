"""What stores the messages of a room. stored_sender.pyx says how it is used."""


cdef class StoredSender:
    cdef object send_stored      # of a HistorySource; None in a subclass
    cdef str channel
    cdef object config           # HistoryConfig

    cdef bint send(self, bytes envelope) except -1
