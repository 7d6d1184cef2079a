# What the core needs of CPython beyond what Cython declares: each function once.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_DATA(object text) noexcept
    int64_t PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1
    bint PyDict_Next(object mapping, Py_ssize_t* at, PyObject** key, PyObject** value) noexcept
    PyObject* PyErr_Occurred() noexcept
    Py_ssize_t Py_REFCNT(PyObject* value) noexcept
    void Py_XDECREF(PyObject* value) noexcept
    PyObject* Py_None

    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    PySendResult PyIter_Send(PyObject* iterator, PyObject* value, PyObject** result) noexcept
    bint PyCoro_CheckExact(object value) noexcept
    object PyContext_CopyCurrent()
    object PyContext_Copy(object context)
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1

cdef extern from "memory/cpythonx.h":
    object pf_own(PyObject* value)
    object pf_take_error()
    void pf_restore(object error) noexcept
    PyObject* pf_next(object iterator) except? NULL
    bint pf_is_awaitable(object value) noexcept
    void pf_set_am_send(object kind, PySendResult (*send)(PyObject*, PyObject*, PyObject**) noexcept) noexcept
    bint pf_is_wakeup(object callback, object task_type) noexcept
