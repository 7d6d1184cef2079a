/* What the core needs of CPython beyond what Cython declares. */
#ifndef PFCORE_CPYTHONX_H
#define PFCORE_CPYTHONX_H

#include <Python.h>
#include <string.h>

/* Takes over a reference that the caller owns. */
static inline PyObject *
pf_own(PyObject *value)
{
    return value;
}

/* The pending exception as an object, the indicator cleared. */
static inline PyObject *
pf_take_error(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace)
        PyException_SetTraceback(value, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return value;
#endif
}

/* Leaves an exception set for a C caller. */
static inline void
pf_restore(PyObject *error)
{
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
}

/* The next item, NULL at the end or where one is set: without StopIteration being made and thrown away. */
static inline PyObject *
pf_next(PyObject *iterator)
{
    PyObject *item = Py_TYPE(iterator)->tp_iternext(iterator);
    if (item == NULL && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_StopIteration))
        PyErr_Clear();
    return item;
}

static inline int
pf_is_awaitable(PyObject *value)
{
    PyAsyncMethods *methods = Py_TYPE(value)->tp_as_async;
    return methods != NULL && methods->am_await != NULL;
}

/* Cython has no am_send slot of its own. With it an awaiting coroutine gets the value, and a task steps us, without a
 * StopIteration being made and thrown away. */
static inline void
pf_set_am_send(PyObject *type, PySendResult (*send)(PyObject *, PyObject *, PyObject **))
{
    ((PyTypeObject *)type)->tp_as_async->am_send = send;
}

/* Is this the wake-up that asyncio's C Task registers: its (task_)wakeup bound to an exact Task? */
static inline int
pf_is_wakeup(PyObject *callback, PyObject *task_type)
{
    static PyCFunction known = NULL;
    PyObject *self;
    if (!PyCFunction_CheckExact(callback))
        return 0;
    self = PyCFunction_GET_SELF(callback);
    if (self == NULL || (PyObject *)Py_TYPE(self) != task_type)
        return 0;
    if (PyCFunction_GET_FUNCTION(callback) == known)
        return 1;
    if (strstr(((PyCFunctionObject *)callback)->m_ml->ml_name, "wakeup") == NULL)
        return 0;
    known = PyCFunction_GET_FUNCTION(callback);
    return 1;
}

#endif
