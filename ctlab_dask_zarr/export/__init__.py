"""Volumes written as files of other formats: whole files, staged, and committed by one rename."""
