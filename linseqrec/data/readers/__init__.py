"""Readers: a log file or frame as one frame of events, whatever the format of the log."""

from linseqrec.data.readers.files import read_file
from linseqrec.data.readers.formats import FORMATS, Format
from linseqrec.data.readers.frames import read_frame
from linseqrec.data.readers.log import Log
from linseqrec.errors import LogError

__all__ = ["FORMATS", "Format", "Log", "LogError", "read_file", "read_frame"]
