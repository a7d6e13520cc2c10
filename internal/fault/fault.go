// Package fault gives errors a class, which the command line turns into an
// exit code, and optional hints, which it prints under the error. Library code
// classifies an error where the cause is known; everything between only adds
// context with %w.
package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Class says whose move it is after a failure.
type Class int

// The classes, in the order of precedence of docs/scripting.md.
const (
	Internal    Class = iota // a defect of this program or something unforeseen
	Usage                    // the command line is wrong
	Gate                     // the work was done and a threshold was not met
	Input                    // the input is corrupt, unsupported or mismatched: retrying will not help
	IO                       // reading, writing or a device failed: retrying may help
	Interrupted              // stopped by a signal or a cancelled context
)

// ExitCode is the process exit status of the class.
func (c Class) ExitCode() int {
	switch c {
	case Usage:
		return 2
	case Gate:
		return 3
	case Input:
		return 4
	case IO:
		return 5
	case Interrupted:
		return 130
	}
	return 1
}

type classed struct {
	class Class
	err   error
}

func (e *classed) Error() string { return e.err.Error() }
func (e *classed) Unwrap() error { return e.err }

// Usagef formats like fmt.Errorf (%w works) and says that the request is wrong.
func Usagef(format string, a ...any) error { return &classed{Usage, fmt.Errorf(format, a...)} }

// Gatef formats an error of class Gate.
func Gatef(format string, a ...any) error { return &classed{Gate, fmt.Errorf(format, a...)} }

// Inputf formats an error of class Input.
func Inputf(format string, a ...any) error { return &classed{Input, fmt.Errorf(format, a...)} }

// IOf formats an error of class IO.
func IOf(format string, a ...any) error { return &classed{IO, fmt.Errorf(format, a...)} }

// ClassOf returns the outermost class given to err. Errors that nobody classified
// are told by their cause: a cancelled context is Interrupted, an error of the
// operating system is IO, anything else Internal.
func ClassOf(err error) Class {
	var c *classed
	if errors.As(err, &c) {
		return c.class
	}
	if errors.Is(err, context.Canceled) {
		return Interrupted
	}
	var pe *fs.PathError
	var errno syscall.Errno // within the errors of os.Rename and os.NewSyscallError, too
	if errors.As(err, &pe) || errors.As(err, &errno) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return IO
	}
	return Internal
}

type hinted struct {
	err  error
	hint string
}

func (e *hinted) Error() string { return e.err.Error() }
func (e *hinted) Unwrap() error { return e.err }

// WithHint adds advice for the person who reads the error: what to try next.
func WithHint(err error, format string, a ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, a...)}
}

// Hints collects the hints of err and everything it wraps, outermost first.
func Hints(err error) []string {
	var out []string
	for err != nil {
		//nolint:errorlint // this walks the chain itself, one error at a time
		if h, ok := err.(*hinted); ok {
			out = append(out, h.hint)
		}
		//nolint:errorlint // as above
		switch u := err.(type) {
		case interface{ Unwrap() error }:
			err = u.Unwrap()
		case interface{ Unwrap() []error }:
			for _, e := range u.Unwrap() {
				out = append(out, Hints(e)...)
			}
			return out
		default:
			return out
		}
	}
	return out
}
