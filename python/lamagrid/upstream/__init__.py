"""All that LamaGrid knows about Lama Cleaner 1.2.5 ("upstream"), and every replacement of its code."""
