// Package term tells whether output goes to a person's terminal.
package term
