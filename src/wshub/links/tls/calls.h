/* Calls functions of Python that return a number, and raise as often as they do not.
 *
 * No frame and no traceback is made for such an exception, which is cheaper. It is safer too: an `except` clause of
 * Cython ends the process if there is no memory for a traceback. */

#ifndef WSHUB_TLS_CALLS_H
#define WSHUB_TLS_CALLS_H

#include <Python.h>

/* Takes over the result of a call. Returns the number that it is, 0 if it is None, or -1 with an exception. */
static inline Py_ssize_t
wshub_number_of(PyObject *result)
{
    Py_ssize_t number = 0;

    if (result == NULL)
        return -1;
    if (result != Py_None)
        number = PyLong_AsSsize_t(result);
    Py_DECREF(result);
    if (number < 0 && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "a function of an SSL object has returned a negative number");
    return number < 0 ? -1 : number;
}

/* Calls a function. The result is that of wshub_number_of(). */
static inline Py_ssize_t
wshub_call(PyObject *function, PyObject *const *arguments, size_t count)
{
    return wshub_number_of(PyObject_Vectorcall(function, arguments, count, NULL));
}

/* Calls a method without arguments. The result is that of wshub_number_of(). */
static inline Py_ssize_t
wshub_call_method(PyObject *object, PyObject *name)
{
    return wshub_number_of(PyObject_CallMethodNoArgs(object, name));
}

/* Clears the exception that the last call has raised, and returns it. */
static inline PyObject *
wshub_take_exception(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
#endif
}

#endif
