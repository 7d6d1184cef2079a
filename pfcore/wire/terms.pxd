# The words and numbers of the wire (specification, sections 2 and 3): each once. `W_X` is a text of terms.h, `N_X` its
# length in bytes; both are known when a module is compiled.

from libc.stdint cimport int64_t

cdef extern from "wire/terms.h" nogil:
    # 2^53-1: the largest integer that a double holds exactly
    const int64_t MAX_SEQ "PF_MAX_SEQ"
    # A gateway's links have two kinds of submits: its own, with seqs below 2^40, and
    # those it hands on, with seqs from there up. A result tells by its seq whose it is.
    const int64_t FIRST_ROUTED "PF_FIRST_ROUTED"

    const char* W_SUBMIT "PF_W_SUBMIT"
    const char* W_RESULT "PF_W_RESULT"
    const char* W_ERROR "PF_W_ERROR"
    const char* W_HEARTBEAT "PF_W_HEARTBEAT"
    const char* W_PAYLOAD "PF_W_PAYLOAD"
    const char* W_PACKET "PF_W_PACKET"
    const char* W_GROUP "PF_W_GROUP"
    const char* W_ELEMENT "PF_W_ELEMENT"
    const char* W_DATA "PF_W_DATA"
    const char* W_PRIORITY "PF_W_PRIORITY"
    const char* W_TIMEOUT "PF_W_TIMEOUT"
    const char* W_DEPENDENCIES "PF_W_DEPENDENCIES"
    const char* W_METADATA "PF_W_METADATA"
    const char* W_ANSWER "PF_W_ANSWER"
    const char* W_SUCCESS "PF_W_SUCCESS"
    const char* W_FAILURE "PF_W_FAILURE"
    const char* W_DURATION "PF_W_DURATION"
    const char* W_PAYLOAD_PACKET "PF_W_PAYLOAD_PACKET"
    const char* W_UUID_PACKET "PF_W_UUID_PACKET"
    const char* W_UUID_ANSWER "PF_W_UUID_ANSWER"
    const char* W_UUID_GROUP "PF_W_UUID_GROUP"
    const char* W_UUID_SUCCESS "PF_W_UUID_SUCCESS"
    const char* W_ELEMENT_DATA "PF_W_ELEMENT_DATA"

    Py_ssize_t N_SUBMIT "PF_BYTES_OF(PF_W_SUBMIT)"
    Py_ssize_t N_RESULT "PF_BYTES_OF(PF_W_RESULT)"
    Py_ssize_t N_PAYLOAD "PF_BYTES_OF(PF_W_PAYLOAD)"
    Py_ssize_t N_UUID_PACKET "PF_BYTES_OF(PF_W_UUID_PACKET)"
    Py_ssize_t N_UUID_ANSWER "PF_BYTES_OF(PF_W_UUID_ANSWER)"
    Py_ssize_t N_UUID_GROUP "PF_BYTES_OF(PF_W_UUID_GROUP)"
    Py_ssize_t N_ELEMENT "PF_BYTES_OF(PF_W_ELEMENT)"
    Py_ssize_t N_ELEMENT_DATA "PF_BYTES_OF(PF_W_ELEMENT_DATA)"
    Py_ssize_t N_PRIORITY "PF_BYTES_OF(PF_W_PRIORITY)"
    Py_ssize_t N_TIMEOUT "PF_BYTES_OF(PF_W_TIMEOUT)"
    Py_ssize_t N_UUID_SUCCESS "PF_BYTES_OF(PF_W_UUID_SUCCESS)"
    Py_ssize_t N_DURATION "PF_BYTES_OF(PF_W_DURATION)"

cdef enum:
    # places of the groups in GROUP_CODES (reader)
    GROUP_CF = 0
    GROUP_DF = 1
    GROUP_ED = 2
    GROUP_CO = 3
    GROUP_MC = 4
    GROUP_RM = 5
    DEFAULT_TIMEOUT_MS = 29500   # reference reactors stop listening at 30,000
    MILLISECOND = 1000000        # ns
