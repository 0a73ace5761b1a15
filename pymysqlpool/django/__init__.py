"""A database backend for Django: `"ENGINE": "pymysqlpool.django"`, with the pool's options in `OPTIONS["pool"]`."""
