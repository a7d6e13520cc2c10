// Package convert (see below).
package convert
